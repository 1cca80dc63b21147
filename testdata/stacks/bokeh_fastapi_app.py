"""bokeh-fastapi."""

from bokeh_fastapi import BokehFastAPI
from counting import app, lifetimes, origins
from fastapi import FastAPI

application = FastAPI()
BokehFastAPI({"/counter": app}, app=application, websocket_origins=origins, **lifetimes)
