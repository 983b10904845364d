"""Will it fit, and how long will it take: arithmetic before anything is loaded."""
