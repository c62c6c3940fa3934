"""A server with the routes of OpenAI's speech API, and a page on which a clip becomes a voice."""
