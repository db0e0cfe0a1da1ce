"""A Django project in one file: uvicorn django_app:application, or gunicorn django_app:wsgi

Async views belong to ASGI and have an AsyncClient, sync views have a Client in either.
"""

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, StreamingHttpResponse
from django.urls import path
from starlette.applications import Starlette
from starlette.routing import Mount

import chairlift

settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="yours", ALLOWED_HOSTS=["127.0.0.1"])
async_client = chairlift.AsyncClient()
client = chairlift.Client()


def asked(request: HttpRequest) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Tell me a story about a {request.GET['about']}."}]


async def async_story(request: HttpRequest) -> StreamingHttpResponse:
    deltas = async_client.stream(asked(request), max_tokens=64, timeout_s=30)
    return StreamingHttpResponse(chairlift.sse(deltas), content_type="text/event-stream")


def story(request: HttpRequest) -> StreamingHttpResponse:
    deltas = client.stream(asked(request), max_tokens=64, timeout_s=30)
    return StreamingHttpResponse(chairlift.sse(deltas), content_type="text/event-stream")


urlpatterns = [path("async-story", async_story), path("story", story)]
wsgi = get_wsgi_application()
llm = Mount("/llm", chairlift.asgi_app(async_client, parts=("chat", "models")))
application = Starlette(routes=[llm, Mount("/", get_asgi_application())])
