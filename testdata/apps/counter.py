"""A counter to click, which shows on which server it lives."""

import os

from bokeh.io import curdoc
from bokeh.layouts import column
from bokeh.models import Button, Div

server = os.environ.get("SERVER_NAME", f"process {os.getpid()}")

# The end-to-end tests count app runs by the lines of this file.
runs = os.environ.get("RUNS_FILE")
if runs:
    with open(runs, "a", encoding="utf-8") as file:
        file.write(f"{server}\n")

clicks = 0
place = Div(name="place", text=f"This document lives on server <b>{server}</b>.")
count = Div(name="count", text="0")
button = Button(name="button", label="Click me", button_type="primary")


def click():
    global clicks
    clicks += 1
    count.text = str(clicks)


button.on_click(click)
curdoc().title = f"Counter on {server}"
curdoc().add_root(column(place, button, count))
