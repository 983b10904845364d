"""The small world that everything can be tried in: images, a base model, a teacher, the demo."""
