"""What a chat model says, taken apart: its reasoning, its words and its calls of tools."""
