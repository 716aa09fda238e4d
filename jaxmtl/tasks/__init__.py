"""What a task is: readers, prompts, rates, few-shot choices, metrics. Plain Python."""
