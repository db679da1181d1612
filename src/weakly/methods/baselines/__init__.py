"""What the methods are compared with: true prompts, detectors, and other people's shortcuts."""
