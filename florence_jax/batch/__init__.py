"""Long runs over many images: nothing lost, nothing twice, resumed where they were stopped."""
