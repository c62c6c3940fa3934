"""Replies to what was said and how: a recording's words and manner, a language model's answer, and its speech."""
