"""Bokeh's own ASGI server."""

from bokeh.server.asgi import BokehASGI
from counting import app, lifetimes, origins

application = BokehASGI({"/counter": app}, extra_websocket_origins=origins, **lifetimes)
