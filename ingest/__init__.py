"""The HTTP edge: catalogue, decoding and verdicts, the writer's pipeline, credentials, the admin API."""
