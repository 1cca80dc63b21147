#!/usr/bin/env bash
# Restarts Bokeh servers one after the other, each when nobody works on it any more.
#
#   rolling-restart.sh <restart command> <address>...
#
# The restart command gets the address as its last argument, and returns when the server answers again. Set CADDY to
# another program, BOKEH_OPTIONS to options of caddy bokeh (--address ...), DRAIN_OPTIONS to those of its drain
# (--timeout 8h, --grace-period 8h). If a step fails, the script stops there: that server stays draining, and the
# others are not touched.
#
# A server that is back takes visitors when health checks have seen it. Until then the next server may be the last that takes
# visitors. So the script waits until caddy bokeh status shows the address, as it is written here, as ready and healthy. It
# waits no longer than a minute.
set -eu -o pipefail
restart=${1:?usage: rolling-restart.sh <restart command> <address>...}
shift
: "${1:?usage: rolling-restart.sh <restart command> <address>...}"
read -r -a caddy <<<"${CADDY:-caddy} bokeh"
read -r -a options <<<"${BOKEH_OPTIONS:-}"
read -r -a draining <<<"${DRAIN_OPTIONS:-}"
read -r -a restarting <<<"$restart"

# Runs a command of caddy bokeh. (Before 4.4 bash takes an empty list for an unset one.)
bokeh() {
	"${caddy[@]}" "$@" ${options[@]+"${options[@]}"}
}

takes_visitors() {
	bokeh status 2>/dev/null |
		awk -v address="$1" '$1 == address && $2 == "ready" && $3 == "yes" { yes = 1 } END { exit !yes }'
}

for address; do
	bokeh drain "$address" --wait --reason "rolling restart" ${draining[@]+"${draining[@]}"}
	"${restarting[@]}" "$address"
	bokeh undrain "$address"
	end=$((SECONDS + 60))
	until takes_visitors "$address" || ((SECONDS >= end)); do
		sleep 1
	done
done
