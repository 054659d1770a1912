"""The microservice: HTTP in, words out, with a WebAssembly guest and WASI-NN in between."""
