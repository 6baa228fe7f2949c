"""The composition of a language model, without torch: its parts, parameters, products and divisors."""
