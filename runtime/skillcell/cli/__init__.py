"""The command line: thin over the client, heavy imports inside the commands so that help and completion are instant."""
