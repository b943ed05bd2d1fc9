"""The routes that no dialect has. They write lines and errors in Ollama's form: the command line reads both."""
