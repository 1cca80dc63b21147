"""Pages of another site, which show an app that lives behind Caddy.

VISITED is the app's address as browsers have it, PULLED the one by which this server prepares sessions.
"""

import os

from bokeh.client import pull_session
from bokeh.embed import server_document, server_session
from flask import Flask

app = Flask(__name__, static_folder=None)


def page(script):
    """Returns a page with a script in it."""
    return f"<!DOCTYPE html><title>another site</title><body>{script}</body>"


@app.get("/ready")
def ready():
    """Answers when the server does."""
    return "yes"


@app.get("/document")
def document():
    """Lets the browser make a session."""
    return page(server_document(os.environ["VISITED"]))


@app.get("/session")
def session():
    """Makes a session, counts to 41 in it, and leaves it to the browser."""
    with pull_session(url=os.environ["PULLED"]) as pulled:
        pulled.document.get_model_by_name("count").text = "41"
        pulled.force_roundtrip()
        return page(server_session(session_id=pulled.id, url=os.environ["VISITED"]))
