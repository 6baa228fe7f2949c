"""What a language model is made of, without torch: its parts, parameters, products and divisors."""
