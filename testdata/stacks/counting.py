"""The counter that all apps here show: to click, with notes of when an app runs and when a session ends."""

import os

from bokeh.layouts import column
from bokeh.models import Button, Div

server = os.environ.get("SERVER_NAME", f"process {os.getpid()}")
origins = os.environ.get("ORIGINS", "*").split()
lifetimes = {
    "unused_session_lifetime_milliseconds": int(os.environ.get("UNUSED_SESSION_LIFETIME", "15000")),
    "check_unused_sessions_milliseconds": int(os.environ.get("CHECK_UNUSED_SESSIONS", "17000")),
}


def note(variable):
    """Adds a line to the file that a variable names: so the tests count."""
    path = os.environ.get(variable)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{server}\n")


def counter():
    """Returns the layout of a new counter, in Bokeh's models."""
    note("RUNS_FILE")
    place = Div(name="place", text=f"This document lives on server <b>{server}</b>.")
    count = Div(name="count", text="0")
    button = Button(name="button", label="Click me", button_type="primary")

    def click():
        count.text = str(int(count.text) + 1)

    button.on_click(click)
    return column(place, button, count)


def app(doc):
    """Fills a document with a counter."""
    doc.add_root(counter())
