"""Panel on FastAPI."""

import panel as pn
from counting import counter, lifetimes, origins
from fastapi import FastAPI
from panel.io.fastapi import add_application

application = FastAPI()
pn.extension(reconnect=True)


@add_application("/counter", app=application, title="Counter", extra_websocket_origins=origins, **lifetimes)
def show():
    """Returns what a session shows."""
    return pn.pane.Bokeh(counter())
