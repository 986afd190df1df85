# syntax=docker/dockerfile:1
FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/llm-gateway
COPY requirements.lock ./
RUN /opt/llm-gateway/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY . .
RUN /opt/llm-gateway/bin/pip install --no-cache-dir --no-deps .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/llm-gateway gateway
COPY --from=build /opt/llm-gateway /opt/llm-gateway
ENV PATH=/opt/llm-gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER gateway
# gateway.toml is read from here if one is mounted; .data (database, credentials, spool) is made here.
WORKDIR /var/lib/llm-gateway
VOLUME /var/lib/llm-gateway
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
# The demo account exists on loopback alone: behind 0.0.0.0, make accounts and keys with the command line.
CMD ["llm-gateway", "serve", "--host", "0.0.0.0"]
