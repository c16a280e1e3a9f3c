"""Posts: a business in, social-media posts with pictures out.

request ─ writer (language model, or templates) ─▶ posts with labels ─ paint ─▶ pictures ─▶ folder
"""
