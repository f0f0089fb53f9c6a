"""What reaches browsers: groups of Django Channels, a WebSocket consumer, a script. Needs the extra `channels`."""
