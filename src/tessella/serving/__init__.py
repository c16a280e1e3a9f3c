"""The HTTP server: OpenAI's image API over one's own models, the studio page, live runs.

On the data's way: after all that it serves. A request is checked against `schemas.py`, becomes
a job of the one painting worker (`worker.py`), which paints what waits together in one batch, and
its pictures are encoded and sent.

    server.py ─▶ app.py ─▶ access.py, guard.py ─▶ images.py, models.py, studio.py, run_routes.py
                                                     └▶ service.py ─▶ worker.py ─▶ TextToImage
"""
