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
