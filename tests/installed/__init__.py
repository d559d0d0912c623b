"""What users get: the wheel, installed with its extras in an environment outside the checkout."""
