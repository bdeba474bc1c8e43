"""OpenAI's API over the service: requests, answers, streams and errors."""
