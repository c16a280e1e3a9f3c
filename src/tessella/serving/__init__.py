"""The HTTP server: OpenAI's image API over your own models, the studio page, live runs.

On the data's way: last. A request is checked against `schemas.py` and becomes a job of the one
painting worker (`worker.py`), which paints whatever waits together in one batch; its pictures are
encoded and sent.

    server ─▶ app ─▶ access_log, middleware ─▶ images, posts_routes, model_routes, studio, …
                                                  │ bodies: request ─▶ schemas
                                                  │ image_job: schemas ─▶ ImageJob
                                                  ▼
                                               service ─▶ worker ─▶ TextToImage.generate_images
                                                  │ image_answer: pictures ─▶ JSON or events
"""
