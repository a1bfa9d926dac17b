"""What must be right before a law means anything: transfer of learning rates, batch size, tuning."""
