"""What the endpoints answer and take, a module for each resource; nothing here knows of Litestar."""
