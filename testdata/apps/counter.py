"""A counter to click, which shows on which server it lives."""

import os

from bokeh.io import curdoc
from bokeh.layouts import column
from bokeh.models import Button, Div

server = os.environ.get("SERVER_NAME", f"process {os.getpid()}")


def noter(variable, line):
    """Returns what adds a line to the file that a variable names: so the end-to-end tests count app runs and their ends."""
    path = os.environ.get(variable)

    def note(*_):
        # When a session ends Bokeh has emptied this module: only what is local is left.
        if path:
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    return note


noter("RUNS_FILE", server)()
curdoc().on_session_destroyed(noter("ENDS_FILE", server))

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
