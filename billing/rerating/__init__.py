"""Re-rating: what recorded calls would cost by another price book, simulated or posted as corrections."""
