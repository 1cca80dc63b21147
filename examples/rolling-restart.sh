#!/usr/bin/env bash
# Restarts Bokeh servers one after the other, each when nobody works on it any more.
#
#   rolling-restart.sh <restart command> <address>...
#
# The restart command gets the address as its last argument, and returns when the server answers again. Set CADDY to
# another program, BOKEH_OPTIONS to options of caddy bokeh (--address ...), DRAIN_OPTIONS to those of its drain
# (--timeout 8h, --grace-period 8h). If a step fails, the script stops there: that server stays draining, and the
# others are not touched.
set -eu -o pipefail
restart=${1:?usage: rolling-restart.sh <restart command> <address>...}
shift
: "${1:?usage: rolling-restart.sh <restart command> <address>...}"
read -r -a caddy <<<"${CADDY:-caddy} bokeh"
read -r -a options <<<"${BOKEH_OPTIONS:-}"
read -r -a draining <<<"${DRAIN_OPTIONS:-}"
read -r -a restarting <<<"$restart"
for address; do
	"${caddy[@]}" drain "${options[@]}" "$address" --wait --reason "rolling restart" "${draining[@]}"
	"${restarting[@]}" "$address"
	"${caddy[@]}" undrain "${options[@]}" "$address"
done
