"""OpenAI's Responses API: answers made of items, and conversations that the server keeps for a while, in memory."""
