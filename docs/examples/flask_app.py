"""A Flask application that streams: gunicorn --preload --workers 2 --threads 8 flask_app:app

Threads, because a stream holds one for as long as it takes.
"""

from flask import Flask, Response, request

import chairlift

client = chairlift.Client()  # made before the fork, used after it: each worker has its own sockets
app = Flask(__name__)


@app.get("/story")
def story() -> Response:
    messages = [{"role": "user", "content": f"Tell me a story about a {request.args['about']}."}]
    deltas = client.stream(messages, max_tokens=64, timeout_s=30)
    return Response(chairlift.sse(deltas), mimetype="text/event-stream")


@app.get("/opening")
def opening() -> dict[str, str]:
    prompt = f"Once upon a time a {request.args['about']}"
    return {"opening": client.complete(prompt, max_tokens=16, timeout_s=10).text}


@app.errorhandler(chairlift.ChairliftError)
def tell(error: chairlift.ChairliftError) -> tuple[dict[str, str], int]:
    return {"error": str(error)}, 503
