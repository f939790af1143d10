"""The auto-classes: four verbs each, no logic of their own."""
