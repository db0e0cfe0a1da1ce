"""A plain script: python script.py"""

import sys

import chairlift

try:
    with chairlift.Client() as client:
        for delta in client.stream("Once upon a time", max_tokens=64, timeout_s=30):
            print(delta.text, end="", flush=True)
        print()
        words = ("cat", "dog", "teapot")
        cat, dog, teapot = (client.embed(word, pooling="mean").vector for word in words)
        print("a dog is like a cat:", sum(a * b for a, b in zip(cat, dog, strict=True)))
        print("a teapot is like a cat:", sum(a * b for a, b in zip(cat, teapot, strict=True)))
except chairlift.DeadlineExceededError:
    sys.exit("that took longer than 30 s")
except chairlift.WorkerUnavailableError as error:
    sys.exit(str(error))
