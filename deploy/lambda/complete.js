// What osls does not write into its template by itself.
'use strict';

class Complete {
  constructor(serverless) {
    this.service = serverless.service;
    this.hooks = { 'after:aws:package:finalize:mergeCustomProviderResources': () => this.all() };
  }

  all() {
    const resources = this.service.provider.compiledCloudFormationTemplate.Resources;
    const named = (type) => Object.keys(resources).filter((name) => resources[name].Type === type);
    for (const [type, said] of Object.entries(this.service.custom.gatewayErrors)) {
      resources[`GatewayResponse${type.replace(/_/g, '')}`] = this.error(type, ...said);
    }
    this.limit(named('AWS::Lambda::Function').map((name) => resources[name]));
    for (const name of named('AWS::ApiGateway::Deployment')) {
      this.throttle(resources[name], named('AWS::ApiGateway::GatewayResponse'));
    }
    for (const name of named('AWS::Lambda::Permission')) {
      if (resources[name].Properties.FunctionUrlAuthType) {
        resources[`${name}Invoke`] = this.invoking(resources[name]);
      }
    }
  }

  // The stage lets through so many requests, and comes when its own errors' responses are there.
  throttle(deployment, responses) {
    const { rate, burst } = this.service.custom.throttling;
    deployment.Properties.StageDescription = {
      ThrottlingRateLimit: Number(rate),
      ThrottlingBurstLimit: Number(burst),
    };
    deployment.DependsOn = [...deployment.DependsOn, ...responses];
  }

  // An error of the gateway's own: without the headers a page sees a network error instead.
  error(type, status, problem, message) {
    const words = message ? JSON.stringify(message) : '$context.error.messageString';
    const error = `{"status": ${status}, "problem": "${problem}", "message": ${words}}`;
    const headers = {
      'Access-Control-Allow-Origin': this.service.custom.origin,
      'Access-Control-Allow-Headers': 'Content-Type, X-Request-Id',
      'Access-Control-Allow-Methods': 'GET, HEAD, POST, OPTIONS',
      'Access-Control-Expose-Headers': 'X-Request-Id, Retry-After',
      ...(problem === 'busy' && { 'Retry-After': '1' }),
    };
    const parameters = Object.entries(headers).map(([name, value]) =>
      [`gatewayresponse.header.${name}`, `'${value}'`]);
    return {
      Type: 'AWS::ApiGateway::GatewayResponse',
      Properties: {
        RestApiId: { Ref: 'ApiGatewayRestApi' },
        ResponseType: type,
        // Given for a default, it would replace the number of all that it takes care of.
        ...(!type.startsWith('DEFAULT') && { StatusCode: String(status) }),
        ResponseParameters: Object.fromEntries(parameters),
        ResponseTemplates: {
          'application/json': `{"error": ${error}, "request_id": "$context.requestId"}`,
        },
      },
    };
  }

  // Copies at once: the one bound of a function URL, which nothing throttles.
  limit(functions) {
    const { concurrency } = this.service.custom;
    if (concurrency === '') return;
    for (const { Properties } of functions) {
      Properties.ReservedConcurrentExecutions = Number(concurrency);
    }
  }

  // Function URLs made since October 2025 want a second permission.
  invoking(permission) {
    const { FunctionName, Principal } = permission.Properties;
    const Action = 'lambda:InvokeFunction';
    return {
      ...permission,
      Properties: { FunctionName, Principal, Action, InvokedViaFunctionUrl: true },
    };
  }
}

module.exports = Complete;
