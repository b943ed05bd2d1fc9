"""Foundry Local's dialect: the routes of SDK v2's service, and those of the daemon that older SDKs and command lines talk to.

What both share with OpenAI's API (`/v1/…`) is that dialect's.
"""
