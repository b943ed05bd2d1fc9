"""The dialect of OpenAI's API: chat, completions, embeddings, models. It is copied by many servers, Ollama and Foundry Local among them.

`bodies` declares what the routes read and `objects` what they write; `requests` makes typed requests of bodies, `chat_format` and
`completion_format` write answers, `choices` runs a request whose answer has several choices, `routes` calls the service.
"""
