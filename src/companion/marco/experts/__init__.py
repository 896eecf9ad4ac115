"""Chapter 9: where expert and anti-expert come from."""
