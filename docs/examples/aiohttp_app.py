"""An aiohttp application that streams: python -m aiohttp.web aiohttp_app:make_app"""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress

from aiohttp import web

import chairlift

client = chairlift.AsyncClient()


async def story(request: web.Request) -> web.StreamResponse:
    messages = [{"role": "user", "content": f"Tell me a story about a {request.query['about']}."}]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    with suppress(ConnectionResetError):  # the caller has gone
        async with aclosing(chairlift.sse(client.stream(messages, max_tokens=64))) as events:
            async for event in events:
                await response.write(event)
    return response


async def open_client(_: web.Application) -> AsyncIterator[None]:
    async with client:
        yield


def make_app(_: Sequence[str] = ()) -> web.Application:
    app = web.Application()
    app.add_routes([web.get("/story", story)])
    app.cleanup_ctx.append(open_client)
    return app
