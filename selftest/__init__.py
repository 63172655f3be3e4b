"""The image examines itself and the machine that it runs on. Stands above train and serve, which know nothing of it."""
