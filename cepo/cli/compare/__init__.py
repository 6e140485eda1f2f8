"""`cepo compare`: what differs between runs, and by how much, as text and as one HTML file."""
