"""Posts: social-media posts with pictures for a business.

request ─ writer (language model or templates) ─▶ posts with labels ─ paint ─▶ pictures ─▶ folder
"""
