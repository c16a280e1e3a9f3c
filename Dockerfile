# The server with the bundled models: docs/how-to/deploy.md#in-a-container.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
ENV PATH=/opt/tessella/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/tessella
WORKDIR /build
COPY constraints.txt ./
# PyTorch is most of the image: a layer of its own, which changed sources leave as it is. Its own
# index has the build for CPUs; without --no-deps all the rest would have to be there too.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --index-url "$TORCH_INDEX" "$(grep ^torch== constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install -c constraints.txt '.[serve,hub]' && pip uninstall --yes pip
# PyTorch's wheel carries its own tests, an eighth of the image.
RUN cd /opt/tessella/lib/python3.*/site-packages/torch && rm -rf test bin/*[Tt]est* bin/protoc*

FROM ${BASE}
COPY --from=build /opt/tessella /opt/tessella
# What is fetched and measured is kept in the one place that may be written.
ENV PATH=/opt/tessella/bin:$PATH XDG_CACHE_HOME=/tmp/cache
USER 65534:65534
EXPOSE 8000
HEALTHCHECK --start-period=300s --timeout=10s CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/healthz', timeout=5)"]
ENTRYPOINT ["tessella", "serve", "--host", "0.0.0.0"]
CMD ["scenes", "stickers"]
