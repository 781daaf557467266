"""Plans: memory, speed and traffic of a program on machines that are not at hand."""
