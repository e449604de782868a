"""/v1/responses, over HTTP and WebSocket."""
