"""How the bundled foundation models are made: pictures, prompts and the training loop."""
