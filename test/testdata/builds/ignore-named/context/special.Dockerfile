FROM base
COPY . /ctx
