"""bokeh-django in a project of one file, under an ASGI server."""

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="of no use here",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["channels", "django.contrib.staticfiles", "bokeh_django"],
    STATIC_URL="/static/",
)
django.setup()

from bokeh.settings import bokehjs_path
from bokeh_django import autoload, document, static_extensions
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.sessions import CookieMiddleware
from counting import app
from django.apps import apps
from django.urls import re_path
from django.views.static import serve

# Each has sessions of its own: at one path, the websocket of one would look for its session at the other.
bokeh_apps = [document("counter", app), autoload("embedded", app)]
urlpatterns = [re_path(r"^static/(?P<path>.*)$", serve, {"document_root": bokehjs_path()})]
urlpatterns += static_extensions()
routes = apps.get_app_config("bokeh_django").routes
application = ProtocolTypeRouter({
    "http": CookieMiddleware(URLRouter(routes.get_http_urlpatterns())),
    "websocket": CookieMiddleware(URLRouter(routes.get_websocket_urlpatterns())),
})
