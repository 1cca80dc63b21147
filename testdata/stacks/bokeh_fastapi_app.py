"""bokeh-fastapi."""

import os

from bokeh_fastapi import BokehFastAPI
from counting import app, lifetimes, origins
from fastapi import FastAPI

application = FastAPI()
headers = os.environ.get("INCLUDE_HEADERS", "").split() or None
BokehFastAPI({"/counter": app}, app=application, websocket_origins=origins, include_headers=headers, **lifetimes)
