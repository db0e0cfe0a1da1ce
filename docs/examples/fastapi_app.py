"""A FastAPI application that streams: uvicorn fastapi_app:app"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

import chairlift

client = chairlift.AsyncClient()  # one for the process; it connects at the first use


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with client:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/story")
async def story(about: str) -> StreamingResponse:
    messages = [{"role": "user", "content": f"Tell me a story about a {about}."}]
    deltas = client.stream(messages, max_tokens=64, timeout_s=30)
    return StreamingResponse(chairlift.sse(deltas), media_type="text/event-stream")


@app.get("/opening")
async def opening(about: str) -> dict[str, str]:
    answer = await client.complete(f"Once upon a time a {about}", max_tokens=16, timeout_s=10)
    return {"opening": answer.text}


@app.exception_handler(chairlift.ChairliftError)
async def tell(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=503)
