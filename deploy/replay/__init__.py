"""Running stored jobs again and comparing what comes of it; and the dead letters."""
